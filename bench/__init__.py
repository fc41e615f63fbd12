"""What a pair of sidecars costs, measured beside a pair of Envoys doing the same work on the same machine."""
