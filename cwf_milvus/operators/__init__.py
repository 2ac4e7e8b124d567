"""The operators' cores: the method's steps and a collection's uses, as plain callables.

They know nothing of Towhee (`cwf_milvus.towhee` registers them there) and serve any pipeline.
"""

from cwf_milvus.operators.common import Operator as Operator
from cwf_milvus.operators.milvus import CamRerank as CamRerank
from cwf_milvus.operators.milvus import InstanceInsert as InstanceInsert
from cwf_milvus.operators.milvus import InstanceSearch as InstanceSearch
from cwf_milvus.operators.vectors import CamVggEmbed as CamVggEmbed
from cwf_milvus.operators.vectors import ClassWeightPool as ClassWeightPool
from cwf_milvus.operators.vectors import PcaWhiten as PcaWhiten
