#!/usr/bin/env bash
# Installs what the tests of pages need beside Python: Chromium, on Debian and its relatives. Where
# it cannot, the tests are skipped and say why.
set -u
if command -v chromium chromium-browser google-chrome >/dev/null 2>&1; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
  echo "no Chromium, and no apt-get to be used by root: the tests of pages will be skipped"
  exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null ||
  echo "Chromium could not be installed: the tests of pages will be skipped"
