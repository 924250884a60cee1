"""Two 1x1 convolutions: the same small network at every position."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from detkds.adapters.conv import convolution
from detkds.arguments import piece
from detkds.protocols import Adapter
from detkds.registry import ADAPTERS
