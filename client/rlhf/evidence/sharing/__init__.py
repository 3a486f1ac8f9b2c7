"""What sharing buys: a round's trunk tokens, and its time beside a round of TRL that generates by itself."""
