from recbole.trainer.trainer import NCLTrainer as NCLTrainer
from recbole.trainer.trainer import PretrainTrainer as PretrainTrainer
from recbole.trainer.trainer import Trainer as Trainer
