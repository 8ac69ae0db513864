"""What talks to other implementations: golden vectors, checks of candidates, the doctor."""
