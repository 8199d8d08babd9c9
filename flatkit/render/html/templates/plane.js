// Planes in three dimensions on canvases that turn together: heights of the loss on one scale.
(() => {
  const data = JSON.parse(document.getElementById("turning-data").textContent);
  const room = document.getElementById("turning");
  const colours = [[68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142],
    [33, 145, 140], [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37]]; // viridis
  const start = { yaw: -0.6, pitch: 0.62, zoom: 1 }, view = { ...start };
  let printing = false;

  const most = (axis) => Math.max(...data.planes.flatMap((plane) => plane[axis].map(Math.abs))) || 1;
  const reach = { x: most("x"), y: most("y") };
  const share = (height) => data.high > data.low ? (height - data.low) / (data.high - data.low) : 0.5;
  const up = (height) => 1.1 * share(height) - 0.55;
  const colour = (t, light) => {
    const at = Math.min(Math.max(t, 0), 1) * (colours.length - 1), i = Math.min(Math.floor(at), colours.length - 2);
    const mix = colours[i].map((low, k) => (low + (colours[i + 1][k] - low) * (at - i)) * light);
    return `rgb(${mix.map(Math.round).join(" ")})`;
  };

  const drawings = data.planes.map((plane) => {
    const box = document.createElement("div"), title = document.createElement("h3");
    const canvas = document.createElement("canvas"), said = document.createElement("output");
    title.textContent = plane.name;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${data.label} of ${plane.name} on a plane; arrow keys turn it`);
    box.append(title, canvas, said);
    room.append(box);
    return { plane, canvas, said, points: [] };
  });

  function project(x, y, z, size) {
    const a = x * Math.cos(view.yaw) - y * Math.sin(view.yaw);
    const b = x * Math.sin(view.yaw) + y * Math.cos(view.yaw);
    // At the start the farthest corner, √2 away, is 1.26 above and below the middle at its highest.
    const scale = 0.31 * view.zoom * Math.min(size.width, 1.2 * size.height);
    return {
      x: size.width * 0.53 + scale * a,
      y: size.height * 0.48 - scale * (z * Math.cos(view.pitch) + b * Math.sin(view.pitch)),
      depth: b * Math.cos(view.pitch) - z * Math.sin(view.pitch),
    };
  }

  function draw(one) {
    const { plane, canvas } = one, dense = devicePixelRatio || 1;
    const size = { width: canvas.clientWidth, height: canvas.clientHeight };
    if (!size.width) return;
    canvas.width = Math.round(size.width * dense);
    canvas.height = Math.round(size.height * dense);
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const ink = printing ? "#1b1f24" : style.getPropertyValue("--ink");
    const line = printing ? "#9aa3ad" : style.getPropertyValue("--muted");
    pen.scale(dense, dense);
    pen.lineJoin = "round";
    const at = (x, y, z) => project(x, y, z, size);
    frame(pen, at, line, ink, plane);
    one.points = [];
    const grid = plane.z.map((row, j) => row.map((height, i) => {
      if (height === null) return null;
      const point = at(plane.x[i] / reach.x, plane.y[j] / reach.y, up(height));
      one.points.push({ ...point, text: `${plane.x[i].toPrecision(3)}, ${plane.y[j].toPrecision(3)}: ${Number(plane.loss[j][i].toPrecision(4))}` });
      return { ...point, height };
    }));
    const faces = [];
    for (let j = 0; j + 1 < grid.length; j++) {
      for (let i = 0; i + 1 < grid[j].length; i++) {
        const face = [grid[j][i], grid[j][i + 1], grid[j + 1][i + 1], grid[j + 1][i]];
        if (face.every(Boolean)) faces.push(face);
      }
    }
    const mean = (face, key) => face.reduce((sum, point) => sum + point[key], 0) / 4;
    faces.sort((a, b) => mean(b, "depth") - mean(a, "depth"));
    for (const face of faces) {
      // A slope to the right is a little darker, so that the shape is seen where colours are alike.
      const slope = (face[1].height + face[2].height - face[0].height - face[3].height) / 2;
      const light = 1 - Math.min(Math.max(4 * slope / (data.high - data.low || 1), -0.12), 0.12) - 0.06;
      pen.beginPath();
      face.forEach((point) => pen.lineTo(point.x, point.y));
      pen.closePath();
      pen.fillStyle = pen.strokeStyle = colour(share(mean(face, "height")), light);
      pen.lineWidth = 0.7;
      pen.fill();
      pen.stroke();
    }
    scale(pen, at, ink);
  }

  const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];

  function frame(pen, at, line, ink, plane) {
    const floor = corners.map(([x, y]) => ({ ...at(x, y, -0.55), own: [x, y] }));
    pen.strokeStyle = line;
    pen.lineWidth = 0.8;
    pen.beginPath();
    floor.forEach((point) => pen.lineTo(point.x, point.y));
    pen.closePath();
    pen.stroke();
    // The names of the axes stand at the two edges that are nearest.
    pen.fillStyle = ink;
    pen.font = "12px system-ui, sans-serif";
    const edges = floor.map((point, k) => ({ from: point, to: floor[(k + 1) % 4] }));
    for (const [k, name] of [[0, "x"], [1, "y"]]) {
      const near = edges.filter((edge) => edge.from.own[k] !== edge.to.own[k])
        .sort((a, b) => a.from.depth + a.to.depth - b.from.depth - b.to.depth)[0];
      const x = (near.from.x + near.to.x) / 2, y = (near.from.y + near.to.y) / 2;
      pen.textAlign = x < at(0, 0, -0.55).x ? "right" : "left";
      const [long, short] = [plane[name + "label"], plane[name + "label"].split("  ")[0]];
      const space = pen.textAlign === "right" ? x - 8 : pen.canvas.clientWidth - x - 8;
      pen.fillText(pen.measureText(long).width < space ? long : short, x + (pen.textAlign === "left" ? 4 : -4), y + 14);
    }
  }

  function scale(pen, at, ink) {
    const [x, y] = corners.map(([x, y]) => ({ x, y, left: at(x, y, 0).x }))
      .sort((a, b) => a.left - b.left).map((corner) => [corner.x, corner.y])[0];
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = 0.8;
    const [foot, head] = [at(x, y, -0.55), at(x, y, 0.55)];
    pen.beginPath();
    pen.moveTo(foot.x, foot.y);
    pen.lineTo(head.x, head.y);
    pen.textAlign = "right";
    pen.font = "11px system-ui, sans-serif";
    let last = Infinity;
    for (const tick of data.ticks) {
      const point = at(x, y, up(tick.at));
      if (last - point.y < 12) continue;
      last = point.y;
      pen.moveTo(point.x - 4, point.y);
      pen.lineTo(point.x, point.y);
      pen.fillText(tick.text, point.x - 7, point.y + 4);
    }
    pen.stroke();
    pen.textAlign = "left";
    pen.fillText(data.label, Math.max(4, head.x - 30), Math.max(12, head.y - 10));
  }

  const redraw = () => drawings.forEach(draw);
  function turn(yaw, pitch) {
    view.yaw += yaw;
    view.pitch = Math.min(Math.max(view.pitch + pitch, 0.05), 1.5);
    redraw();
  }
  function zoom(factor) {
    view.zoom = Math.min(Math.max(view.zoom * factor, 0.4), 4);
    redraw();
  }
  const keys = {
    ArrowLeft: () => turn(0.12, 0), ArrowRight: () => turn(-0.12, 0),
    ArrowUp: () => turn(0, 0.08), ArrowDown: () => turn(0, -0.08),
    "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15),
    0: () => { Object.assign(view, start); redraw(); },
  };
  for (const one of drawings) {
    const { canvas, said } = one;
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) return turn(-event.movementX * 0.01, event.movementY * 0.008);
      const near = one.points.reduce((best, point) => {
        const far = Math.hypot(point.x - event.offsetX, point.y - event.offsetY);
        return far < best.far || (far < best.far + 2 && point.depth < best.depth) ? { far, ...point } : best;
      }, { far: 14, depth: Infinity, text: "" });
      said.textContent = near.text;
    });
    new ResizeObserver(() => draw(one)).observe(canvas);
  }
  addEventListener("recolour", redraw);
  addEventListener("beforeprint", () => { printing = true; redraw(); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  redraw();
})();
