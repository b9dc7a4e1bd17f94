"""A deployment as manifests: Kubernetes, KServe, llm-d, podman, compose."""
