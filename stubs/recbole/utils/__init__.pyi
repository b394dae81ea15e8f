from recbole.utils.enum_type import EvaluatorType as EvaluatorType
from recbole.utils.enum_type import FeatureSource as FeatureSource
from recbole.utils.enum_type import FeatureType as FeatureType
from recbole.utils.enum_type import InputType as InputType
from recbole.utils.enum_type import ModelType as ModelType
from recbole.utils.utils import get_model as get_model
from recbole.utils.utils import get_trainer as get_trainer
from recbole.utils.utils import init_seed as init_seed
