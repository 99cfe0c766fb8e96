"""What scores videos, in this process or on a server. See `algorithm.protocols.Reward`."""
