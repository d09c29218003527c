"""What a configuration says: YAML with places, validated."""
