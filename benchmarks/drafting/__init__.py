"""What drafters are worth on recorded sessions, offline: the recorded reply is the greedy truth."""
