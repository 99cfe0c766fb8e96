"""Video models that are trained, one file per family of pipelines. See `algorithm.protocols.Policy`."""
