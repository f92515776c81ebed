/* Stub: see tests/tflm_stub/README.md. */
#ifndef TFLM_STUB_MICRO_MUTABLE_OP_RESOLVER_H
#define TFLM_STUB_MICRO_MUTABLE_OP_RESOLVER_H

#include <cstring>

#include "tensorflow/lite/c/common.h"

namespace tflite {

class MicroOpResolver {
 public:
    virtual bool has(const char *name) const = 0;
    virtual ~MicroOpResolver() {}
};

template <unsigned int tOpCount>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
    /* As in TFLite Micro: nothing on a microcontroller may call the global delete. */
    void operator delete(void *) {}

    explicit MicroMutableOpResolver() {}

    bool has(const char *name) const override {
        for (unsigned int i = 0; i < count_; ++i) {
            if (std::strcmp(names_[i], name) == 0) return true;
        }
        return false;
    }

#define TFLM_STUB_ADD(name) \
    TfLiteStatus Add##name() { return add(#name); }
#define TFLM_STUB_ADD_8(a, b, c, d, e, f, g, h)                                             \
    TFLM_STUB_ADD(a) TFLM_STUB_ADD(b) TFLM_STUB_ADD(c) TFLM_STUB_ADD(d) TFLM_STUB_ADD(e)    \
    TFLM_STUB_ADD(f) TFLM_STUB_ADD(g) TFLM_STUB_ADD(h)
    TFLM_STUB_ADD_8(Abs, Add, AddN, ArgMax, ArgMin, AssignVariable, AveragePool2D, BatchMatMul)
    TFLM_STUB_ADD_8(BatchToSpaceNd, BroadcastArgs, BroadcastTo, CallOnce, Cast, Ceil,
                    CircularBuffer, Concatenation)
    TFLM_STUB_ADD_8(Conv2D, Cos, CumSum, Decode, Delay, DepthToSpace, DepthwiseConv2D, Dequantize)
    TFLM_STUB_ADD_8(DetectionPostprocess, Div, DynamicUpdateSlice, Elu, EmbeddingLookup, Energy,
                    Equal, EthosU)
    TFLM_STUB_ADD_8(Exp, ExpandDims, FftAutoScale, Fill, FilterBank, FilterBankLog,
                    FilterBankSpectralSubtraction, FilterBankSquareRoot)
    TFLM_STUB_ADD_8(Floor, FloorDiv, FloorMod, Framer, FullyConnected, Gather, GatherNd, Greater)
    TFLM_STUB_ADD_8(GreaterEqual, HardSwish, If, Irfft, L2Normalization, L2Pool2D, LeakyRelu, Less)
    TFLM_STUB_ADD_8(LessEqual, Log, LogSoftmax, LogicalAnd, LogicalNot, LogicalOr, Logistic,
                    MaxPool2D)
    TFLM_STUB_ADD_8(Maximum, Mean, Minimum, MirrorPad, Mul, Neg, NotEqual, OverlapAdd)
    TFLM_STUB_ADD_8(PCAN, Pack, Pad, PadV2, Prelu, Quantize, ReadVariable, ReduceAll)
    TFLM_STUB_ADD_8(ReduceMax, ReduceMin, Relu, Relu6, Reshape, ResizeBilinear,
                    ResizeNearestNeighbor, ReverseV2)
    TFLM_STUB_ADD_8(Rfft, Round, Rsqrt, SelectV2, Shape, Sin, Slice, Softmax)
    TFLM_STUB_ADD_8(SpaceToBatchNd, SpaceToDepth, Split, SplitV, Sqrt, Square, SquaredDifference,
                    Squeeze)
    TFLM_STUB_ADD_8(Stacker, StridedSlice, Sub, Sum, Svdf, Tanh, Transpose, TransposeConv)
    TFLM_STUB_ADD(UnidirectionalSequenceLSTM) TFLM_STUB_ADD(Unpack) TFLM_STUB_ADD(VarHandle)
    TFLM_STUB_ADD(While) TFLM_STUB_ADD(Window) TFLM_STUB_ADD(ZerosLike)

 private:
    TfLiteStatus add(const char *name) {
        if (count_ == tOpCount || has(name)) return kTfLiteError;
        names_[count_++] = name;
        return kTfLiteOk;
    }

    const char *names_[tOpCount];
    unsigned int count_ = 0;
};

}  // namespace tflite

#endif
