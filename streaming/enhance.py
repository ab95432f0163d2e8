"""Stage 3, the two modes of enhancement: joint, and causal [StreamingT2V §4.3]."""

from streaming.causal import enhance_causal as enhance_causal
from streaming.enhancer import Enhancer as Enhancer
from streaming.enhancer import assemble_enhancer as assemble_enhancer
from streaming.joint import enhance_joint as enhance_joint
