"""Rewards: recipes, the formulas that they name, rules, and the versioned files that hold both."""
