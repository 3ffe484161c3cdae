"""OpenVLA-OFT: a 7 B vision-language model that predicts chunks of continuous actions."""
