"""What a checkpoint is, in words."""

from collections.abc import Mapping

from flatkit.checkpoints.readers.reader import Opened


def format_of(file: Opened, entry: str) -> str:
    """Return the format of an open checkpoint, e.g. `Lightning 2.4 (torch.save)`.

    Args:
        file: open.
        entry: the part of it that holds the weights.

    >>> format_of(Opened("a.pt", "torch.save", {}, 0, ""), "")
    'state dict (torch.save)'
    """
    content = file.content if isinstance(file.content, Mapping) else {}
    if "flatkit_checkpoint" in content:
        return f"flatkit {content['flatkit_checkpoint']}"
    if file.format != "torch.save":
        return file.format
    version = content.get("pytorch-lightning_version")
    if version is not None:
        return f"Lightning {str(version)[:20]} (torch.save)"
    return f"{'training checkpoint' if entry else 'state dict'} (torch.save)"
