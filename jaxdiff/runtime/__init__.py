"""What runs where and at what cost: platforms, compilation, cost, profiles, collectives, stops."""
