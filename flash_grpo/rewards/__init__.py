"""Score videos, in this process or on a server. Every reward is an `algorithm.protocols.Reward`."""
