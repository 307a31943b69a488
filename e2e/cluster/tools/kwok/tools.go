//go:build tools

// Package tools pins kwok, which simulates nodes with GPUs and the pods on them.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
