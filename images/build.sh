#!/usr/bin/env bash
# Build images on a machine without a registry to pull from, for e2e and for a look at them: images/build.sh NAME...
# Each becomes localhost/headwater-NAME:1 in a docker-archive tar, headwater-NAME.tar, in $HEADWATER_IMAGES_DIR. What has
# not changed is not built again. MODELS and TORCH_INDEX are build arguments of the engine's images. Elsewhere any builder
# does: docs/images.md.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=${HEADWATER_IMAGES_DIR:-${HEADWATER_CLUSTER_DIR:-/var/lib/headwater-e2e}/images}
suite=bookworm # Debian 12 carries Python 3.11
base=localhost/headwater-base:1

say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

builder() { buildah --root "$output/storage" --runroot "$output/run" --storage-driver "$driver" "$@"; }

# overlay where the kernel has it: vfs, which works everywhere, copies everything for each layer.
storage_driver() {
    local try=$output/try
    mkdir -p "$try"/{lower,upper,work,merged}
    if mount -t overlay overlay -o "lowerdir=$try/lower,upperdir=$try/upper,workdir=$try/work" "$try/merged" 2>/dev/null; then
        umount "$try/merged"
        echo overlay
    else
        echo vfs
    fi
    rm -rf "$try"
}

install_packages() {
    local package missing=()
    for package in buildah debootstrap; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# What python:3.11-slim is, made of Debian packages: the base of all images that are built here.
build_base() {
    builder inspect --type image "$base" >/dev/null 2>&1 && return
    local root=$output/rootfs container mirror
    say "building the base"
    # shellcheck disable=SC2016  # apt's own variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" | sed -n 1p)
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$root" ${mirror:+"$mirror"} \
        >"$output/debootstrap.log" 2>&1 || die "debootstrap failed: $output/debootstrap.log"
    (cd "$root" && rm -rf usr/share/{doc,info,locale,man}/* var/cache/apt/* var/lib/apt/lists/* dev/*)
    container=$(builder from scratch)
    builder add --quiet "$container" "$root" / >/dev/null
    builder commit --quiet --rm "$container" "$base" >/dev/null
    rm -rf "$root"
}

build() {
    local name=$1 began=$SECONDS image=localhost/headwater-$1:1 from file
    local tar=$output/headwater-$name.tar stamp=$output/.$name.from
    [[ -f $top/images/Containerfile.$name ]] || die "there is no images/Containerfile.$name"
    from=$(sources "$name" | sha256sum)
    [[ -s $tar && $(cat "$stamp" 2>/dev/null) == "$from" ]] && return
    local arguments=(--quiet --layers --isolation chroot --network host --build-arg "BASE=$base")
    # This machine's way to packages is mounted while building, and no part of the image.
    apt-config dump 2>/dev/null | grep -E '^Acquire::(http|https|Check)' >"$output/apt.conf" || true
    arguments+=(--volume "$output/apt.conf:/etc/apt/apt.conf.d/90-builder:ro")
    for file in /etc/ssl/certs /etc/pip.conf; do
        [[ ! -e $file ]] || arguments+=(--volume "$file:$file:ro")
    done
    if [[ $name == engine-c* ]]; then
        arguments+=(--build-arg "MODELS=${MODELS:-}")
        [[ -z ${TORCH_INDEX:-} ]] || arguments+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    fi
    if [[ $name == engine-e2e ]]; then
        arguments+=(--volume "$top:/headwater/checkout:ro" --volume "$(site_packages):/headwater/site-packages:ro")
        arguments+=(--build-arg "KERNELS=$(kernels | sha256sum | cut -c1-16)")
    fi
    say "building $image"
    builder build "${arguments[@]}" --tag "$image" --file "$top/images/Containerfile.$name" "$top" >/dev/null
    rm -f "$tar"
    builder push --quiet "$image" "docker-archive:$tar:$image" >/dev/null
    echo "$from" >"$stamp"
    say "built $image in $((SECONDS - began)) s: $tar"
}

# All that an image is made of.
sources() {
    builder inspect --type image --format '{{.FromImageID}}' "$base"
    case $1 in
        engine-e2e)
            cat "$top/images/Containerfile.$1"
            kernels
            ;;
        *)
            echo "${MODELS:-} ${TORCH_INDEX:-}"
            cd "$top"
            find pyproject.toml README.md LICENSE headwater engine router operator "images/Containerfile.$1" images/requirements.py \
                -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum
            ;;
    esac
}

kernels() {
    cat "$top"/engine/headwater_engine/kernels/{build.py,*.cpp,*.h}
    grep -m1 '^flags' /proc/cpuinfo || true
    echo "$(site_packages)"/torch-*
}

site_packages() { "${PYTHON:-$top/.venv/bin/python}" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

(($#)) || die "usage: images/build.sh NAME...; there are: $(cd "$top/images" && echo Containerfile.* | sed 's/Containerfile\.//g')"
[[ $(id -u) == 0 ]] || die "needs root: for debootstrap and chroot"
mkdir -p "$output"
exec 9>"$output/lock"
flock 9
install_packages
driver=$(storage_driver)
build_base
for each; do
    build "$each"
done
