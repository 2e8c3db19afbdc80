"""Weights on disk and back, and names of models to their folders.

- checkpoint: a model's folder; `load_config`, `load_params`, `writing_model`, `save_model`
- loading: from a model's folder to its modules
- hub: from a name to a folder; `find_model`, `find_codec`, `models_home`
- tokenizer: text to token ids; `Tokenizer`
- lora_file: adapters; `save`, `load`
- codec_file: encoded audio; `EncodedAudio`, `write`, `read`
- arrays: trees of arrays, by Orbax
- int8_storage: weights rounded to eight bits on disk
"""
