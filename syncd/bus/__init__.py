"""The bus: events over NATS JetStream, where a fleet is larger than one machine."""
