"""Captures Hugging Face folders: config, safetensors and tokenizer files into the IR.

Importing `regraft.frontends.huggingface.load` imports torch and transformers; the rest imports
neither.
"""
