"""Which edits exist, and which of them an input falls under. Pure stores: no modules, no model knowledge."""
