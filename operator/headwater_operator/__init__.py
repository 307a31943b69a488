"""The operator: reconciles ModelDeployments into engine replicas on Kubernetes."""
