#!/bin/sh
# Installs the Debian packages named as arguments that are missing, or says the line that does.
set -eu
missing=
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
# npm from elsewhere than Debian is as good.
if command -v npm >/dev/null 2>&1; then
    missing=$(echo "$missing" | sed 's/ npm\( \|$\)/\1/')
fi
[ -n "${missing# }" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "This needs the Debian packages:$missing - and there is no apt-get here. Install their like, and run again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    sudo=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    sudo=sudo
else
    echo "Please install some packages first: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "Installing Debian packages:$missing"
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qq -y --no-install-recommends $missing >/dev/null
