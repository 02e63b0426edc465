#!/usr/bin/env bash
# Installs edge-mbm beside JetPack's own libraries, on JetPack 6 and 7. Run it again whenever you like: what is there
# and right is left alone. --dry-run prints each step and takes none.
set -euo pipefail

usage() {
    cat <<'END'
Use: sudo runtime/install.sh [--dry-run] [--wheel FILE] [--onnxruntime FILE] [--venv DIR] [--service]

  --wheel FILE        edge-mbm's wheel; without it the newest in dist/ (on the workstation: python -m build --wheel)
  --onnxruntime FILE  NVIDIA's onnxruntime wheel for your JetPack, for the GPU; without it what is installed is kept,
                      and where there is none pip's is taken, which computes on the CPU
  --venv DIR          where to; /opt/edge-mbm unless given
  --service           also the systemd units, the power profile and the settings in /etc/edge-mbm, none of them enabled
  --dry-run           print what would be done
END
}

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
wrong_use() { printf 'error: %s\n\n' "$*" >&2; usage >&2; exit 2; }

# A step that changes something.
run() {
    printf '+ %s\n' "$*"
    [[ $dry_run == yes ]] || "$@"
}

# Tests put the machine's files under a folder of their own.
root=${EDGE_MBM_ROOT:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
constraints=$here/jetson-constraints.txt
standard_venv=$root/opt/edge-mbm

read_options() {
    dry_run=no service=no wheel='' onnxruntime='' venv=$standard_venv
    while (($#)); do
        case $1 in
            --dry-run) dry_run=yes ;;
            --service) service=yes ;;
            --wheel | --onnxruntime | --venv)
                [[ -n ${2:-} ]] || wrong_use "$1 needs a value"
                printf -v "${1#--}" %s "$2"
                shift
                ;;
            --help | -h) usage; exit 0 ;;
            *) wrong_use "no such option: $1" ;;
        esac
        shift
    done
    [[ $service == no || $venv == "$standard_venv" ]] || wrong_use "the units start what is in /opt/edge-mbm: leave out --venv"
}

# Sets jetpack and l4t, or ends with what to do instead.
find_jetpack() {
    local file=$root/etc/nv_tegra_release line=''
    [[ -r $file ]] || die "this is no Jetson: there is no /etc/nv_tegra_release. Elsewhere: pip install 'edge-mbm[cpu,video]'"
    IFS= read -r line <"$file" || true
    [[ $line =~ R([0-9]+)' (release), REVISION: '([0-9.]+) ]] || die "cannot read the L4T release in /etc/nv_tegra_release: '$line'"
    l4t=${BASH_REMATCH[1]}.${BASH_REMATCH[2]}
    case ${BASH_REMATCH[1]} in
        36) jetpack=6 ;;
        38 | 39) jetpack=7 ;;
        3[0-5] | [12]?) die "L4T $l4t is older than JetPack 6, whose Python is the first that edge-mbm runs on: flash JetPack 6 or 7" ;;
        *) die "L4T $l4t is not known to this script, which knows JetPack 6 (L4T 36) and 7 (38, 39): get a newer edge-mbm" ;;
    esac
    say "JetPack $jetpack, L4T $l4t"
}

find_wheels() {
    if [[ -z $wheel ]]; then
        local found
        for found in "$here"/../dist/edge_mbm-*.whl; do
            [[ ! -e $found ]] || [[ -n $wheel && $found -ot $wheel ]] || wheel=$found
        done
        [[ -n $wheel ]] || die "no wheel of edge-mbm: make one on the workstation (python -m build --wheel), copy it here, and give it with --wheel"
    fi
    [[ -f $wheel ]] || die "no such wheel: $wheel"
    [[ -z $onnxruntime || -f $onnxruntime ]] || die "no such wheel: $onnxruntime"
}

# Where a module comes from; nothing if it is not there. It is not imported.
origin() {
    "$1" -c "import importlib.util as u; s = u.find_spec('$2'); print((s.origin or '') if s else '')"
}

install_system_packages() {
    local missing=()
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    [[ -n $(origin python3 cv2) ]] || missing+=(python3-opencv)
    [[ $(dpkg-query -W -f='${db:Status-Status}' libportaudio2 2>/dev/null || true) == installed ]] || missing+=(libportaudio2)
    ((${#missing[@]} == 0)) || run apt-get install -y --no-install-recommends "${missing[@]}"
}

make_venv() {
    if [[ ! -e $venv ]]; then
        run python3 -m venv --system-site-packages "$venv"
    elif grep -qs '^include-system-site-packages = true' "$venv/pyvenv.cfg"; then
        say "$venv is there"
    else
        die "$venv is not a venv with --system-site-packages, and would not see JetPack's libraries: move it away, or give another --venv"
    fi
    # Of a dry run that has not made it: it would see what the system's Python sees.
    python=$venv/bin/python
    [[ -x $python ]] || python=python3
}

NVIDIAS=(cv2 tensorrt onnxruntime)

install_python_packages() {
    local stamp=$venv/.edge-mbm-installed wanted module packages=(av soxr sounddevice)
    wanted=$(cat "$wheel" "$constraints" ${onnxruntime:+"$onnxruntime"} | sha256sum)
    if [[ -x $venv/bin/edge-mbm && $(cat "$stamp" 2>/dev/null || true) == "$wanted" ]]; then
        say "this very wheel is installed"
        return
    fi
    local -A before=()
    for module in "${NVIDIAS[@]}"; do
        before[$module]=$(origin "$python" "$module")
        [[ -z ${before[$module]} ]] || say "keeping $module: ${before[$module]}"
    done
    if [[ -n $onnxruntime ]]; then
        packages+=("$onnxruntime")
        unset 'before[onnxruntime]'
    elif [[ -z ${before[onnxruntime]} ]]; then
        say "no onnxruntime here: taking pip's, which computes on the CPU (--onnxruntime gives it NVIDIA's)"
        packages+=(onnxruntime)
    fi
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
    run "${pip[@]}" --upgrade-strategy only-if-needed --constraint "$constraints" "$wheel" "${packages[@]}"
    # Another build of the same version is no news to pip.
    run "${pip[@]}" --no-deps --force-reinstall "$wheel"
    [[ $dry_run == no ]] || return 0
    for module in "${!before[@]}"; do
        [[ -z ${before[$module]} || $(origin "$python" "$module") == "${before[$module]}" ]] ||
            die "$module was ${before[$module]} and is now $(origin "$python" "$module"): remove $venv, and run this again"
    done
    printf '%s\n' "$wanted" >"$stamp"
}

# Copies a file unless the very same is there; sets changed.
place() {
    cmp -s "$1" "$root$2" && return
    run install -D -m "$3" "$1" "$root$2"
    changed=yes
}

install_udev_rules() {
    changed=no
    place "$here/71-edge-mbm.rules" /etc/udev/rules.d/71-edge-mbm.rules 644
    # Not while an image is built, where nothing runs; its first boot reads the rules anyway.
    if [[ $changed == yes && -d $root/run/udev ]]; then
        run udevadm control --reload
        run udevadm trigger --subsystem-match=video4linux
    fi
}

install_service() {
    [[ $service == yes ]] || return 0
    changed=no
    place "$here/edge-mbm-power.sh" /opt/edge-mbm/bin/edge-mbm-power 755
    place "$here/edge-mbm.service" /etc/systemd/system/edge-mbm.service 644
    place "$here/edge-mbm-power.service" /etc/systemd/system/edge-mbm-power.service 644
    # Settings are the owner's: never written over.
    [[ -e $root/etc/edge-mbm/edge-mbm.env ]] || place "$here/edge-mbm.env" /etc/edge-mbm/edge-mbm.env 644
    [[ $changed == no || ! -d $root/run/systemd/system ]] || run systemctl daemon-reload
    say "next: put a bundle at /etc/edge-mbm/model.mbm, sudoedit /etc/edge-mbm/edge-mbm.env,"
    say "      sudo systemctl enable --now edge-mbm     (and, for steady clocks, edge-mbm-power)"
}

main() {
    read_options "$@"
    find_jetpack
    find_wheels
    [[ $dry_run == yes || -n $root || $(id -u) == 0 ]] || die "only root may write to $venv: sudo $0 $*"
    install_system_packages
    make_venv
    install_python_packages
    install_udev_rules
    install_service
    run "$venv/bin/edge-mbm" doctor
}

main "$@"
