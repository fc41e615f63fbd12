"""App ID to addresses: the contract of a resolver, the resolvers, and the cache in front of them."""
