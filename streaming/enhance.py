"""Stage 3, the two modes of enhancement: joint, and causal [StreamingT2V §4.3]."""

from streaming.enhance_causal import enhance_causal as enhance_causal
from streaming.enhance_joint import enhance_joint as enhance_joint
from streaming.enhancer import Enhancer as Enhancer
from streaming.enhancer import assemble_enhancer as assemble_enhancer
