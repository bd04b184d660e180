"""ONNX Runtime GenAI's model builder with less memory: the same program, options and quantiser, one matrix at a time.

    python build_onnxruntime_genai.py -i CHECKPOINT -o FOLDER -p int4 -e cpu ...     # options: the builder's own

The builder makes a second copy of all weights in float32 before it quantises the first one, more than 20 GB for the 4B.
Here each constant matrix becomes its MatMulNBits, by the quantiser that the builder calls with the arguments it calls it
with, before the builder's own pass, which finds none left. The resulting weights are the builder's bit for bit.
"""
import runpy

import onnx
import onnx_ir as ir
import onnxruntime_genai.models  # noqa: F401 (puts the builder's modules on the path)
from builders.base import Model
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer, QuantFormat

all_at_once = Model.to_nbits


def quantize_in_place(builder: Model, node: ir.Node) -> None:
    weight = node.inputs[1]
    alone = onnx.helper.make_model(onnx.helper.make_graph(
        [ir.to_proto(node)], "one", [], [], [ir.serde.serialize_tensor(weight.const_value)]))
    options = builder.quant_attrs
    quantizer = MatMulNBitsQuantizer(
        model=alone, bits=options["bits"], block_size=options["matmul_block_size"], is_symmetric=options["is_symmetric"],
        accuracy_level=options["accuracy_level"], quant_format=QuantFormat.QOperator, op_types_to_quantize=("MatMul",))
    quantizer.process()
    [result] = quantizer.model.model.graph.node
    if result.op_type != "MatMulNBits":
        raise RuntimeError(f"{node.name}: the quantiser left {result.op_type}")
    graph = builder.model.graph
    tensors = {t.name: t for t in quantizer.model.model.graph.initializer}
    node.resize_inputs(len(result.input))
    for i, name in enumerate(result.input):
        if i == 0:
            continue
        tensor = ir.serde.deserialize_tensor(tensors[name])
        value = builder.make_value(name, tensor.dtype, tensor.shape)
        value.const_value = tensor
        graph.register_initializer(value)
        node.replace_input_with(i, value)
    node.op_type, node.domain, node.name = result.op_type, result.domain, result.name
    for attribute in result.attribute:
        node.attributes[attribute.name] = ir.serde.deserialize_attribute(attribute)
    if not weight.uses():
        del graph.initializers[weight.name]
        del builder.values[weight.name]
        weight.const_value = None


def one_by_one(builder: Model) -> ir.Model:
    if builder.quantization_algo != "default" or builder.quant_attrs["use_qdq"] or builder.int4_customized_weight_config:
        return all_at_once(builder)  # other ways of the builder, which are not taken apart here
    for node in list(builder.model.graph):
        if (node.op_type == "MatMul" and node.inputs[1].const_value is not None and
                node.name not in builder.quant_attrs["nodes_to_exclude"]):
            quantize_in_place(builder, node)
    return all_at_once(builder)


Model.to_nbits = one_by_one
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
