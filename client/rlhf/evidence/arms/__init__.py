"""Three arms of RL over several seeds: preference only, rules only, the mix; rewarded by judges and by learned heads."""
