"""The consumer of kind `aidbox`: its session, its actions, and verification of adoption."""
