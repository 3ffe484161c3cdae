"""OpenVLA-OFT: a 7 B vision-language-action policy that predicts chunks of continuous actions."""
