//go:build tools

// Package tools pins the Kubernetes programs of the e2e cluster. k8s.io/kubernetes names its staging modules as v0.0.0:
// the replacements in go.mod are their published versions.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
