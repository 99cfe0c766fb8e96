"""Train video models, one file per family of pipelines. Every model is an `algorithm.protocols.Policy`."""
