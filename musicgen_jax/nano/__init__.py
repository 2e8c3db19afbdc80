"""The bundled model: its music, its weights and how they were made."""
