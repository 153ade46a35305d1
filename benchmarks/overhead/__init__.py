"""What a round takes when training takes nothing: the orchestration, the exchange, the protocol."""
