#!/bin/sh
# Prints the first interpreter of the wanted version that runs and can make a virtual environment: find_python.sh 3.10
# A name on PATH is not enough: version managers put shims there for versions that are not switched on.
set -u
version=$1
for candidate in "python$version" "$HOME"/.pyenv/versions/"$version".*/bin/"python$version" python3; do
    path=$(command -v "$candidate" 2>/dev/null) || continue
    found=$("$path" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if [ "$found" = "$version" ]; then
        echo "$path"
        exit 0
    fi
done
exit 1
