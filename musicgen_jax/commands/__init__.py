"""The command line. Nothing imports it.

cli                                          the parser and the exit codes
generate, batch, chroma, codec               make music
evaluate, export, warmup                     models; `convert` and `export-torch` are in convert/
finetune, train, train_encode, train_lm, train_codec
options, output, batch_folder, streams       what several commands share
"""
