@file:Suppress("UNUSED_PARAMETER", "unused")

package ai.onnxruntime

import java.io.File
import java.nio.ByteBuffer
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer
import tape.Tape
import tape.little

enum class OnnxJavaType { FLOAT, DOUBLE, INT8, INT16, INT32, INT64, BOOL, STRING, UINT8 }

interface OnnxValue : AutoCloseable

class OnnxTensor internal constructor(internal val bytes: ByteArray) : OnnxValue {
    val byteBuffer: ByteBuffer get() = little(bytes)
    val floatBuffer: FloatBuffer get() = little(bytes).asFloatBuffer()
    val doubleBuffer: DoubleBuffer get() = little(bytes).asDoubleBuffer()
    val shortBuffer: ShortBuffer get() = little(bytes).asShortBuffer()
    val intBuffer: IntBuffer get() = little(bytes).asIntBuffer()
    val longBuffer: LongBuffer get() = little(bytes).asLongBuffer()

    override fun close() {}

    companion object {
        private fun made(count: Int, width: Int, shape: LongArray, put: (ByteBuffer) -> Unit): OnnxTensor {
            check(shape.fold(1L) { product, axis -> product * axis } == count.toLong())
            return OnnxTensor(little(count * width).also(put).array())
        }

        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: FloatBuffer, shape: LongArray): OnnxTensor =
            made(data.remaining(), 4, shape) { it.asFloatBuffer().put(data) }

        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: DoubleBuffer, shape: LongArray): OnnxTensor =
            made(data.remaining(), 8, shape) { it.asDoubleBuffer().put(data) }

        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: ShortBuffer, shape: LongArray): OnnxTensor =
            made(data.remaining(), 2, shape) { it.asShortBuffer().put(data) }

        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: IntBuffer, shape: LongArray): OnnxTensor =
            made(data.remaining(), 4, shape) { it.asIntBuffer().put(data) }

        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: LongBuffer, shape: LongArray): OnnxTensor =
            made(data.remaining(), 8, shape) { it.asLongBuffer().put(data) }

        @JvmStatic
        fun createTensor(
            env: OrtEnvironment,
            data: ByteBuffer,
            shape: LongArray,
            type: OnnxJavaType
        ): OnnxTensor = made(data.remaining(), 1, shape) { it.put(data) }
    }
}

class OrtEnvironment private constructor() {
    private var telemetry = true

    fun setTelemetry(sendTelemetry: Boolean) {
        telemetry = sendTelemetry
    }

    fun createSession(modelPath: String, options: OrtSession.SessionOptions): OrtSession {
        check(!telemetry && File(modelPath).isFile && options.threads > 0)
        return OrtSession()
    }

    companion object {
        private val only = OrtEnvironment()

        @JvmStatic
        fun getEnvironment(): OrtEnvironment = only
    }
}

class OrtSession internal constructor() : AutoCloseable {
    class SessionOptions : AutoCloseable {
        enum class ExecutionMode { SEQUENTIAL, PARALLEL }

        enum class OptLevel { NO_OPT, BASIC_OPT, EXTENDED_OPT, ALL_OPT }

        internal var threads = 0

        fun setExecutionMode(mode: ExecutionMode) {}

        fun setOptimizationLevel(level: OptLevel) {}

        fun setInterOpNumThreads(numThreads: Int) {}

        fun setIntraOpNumThreads(numThreads: Int) {
            threads = numThreads
        }

        fun setMemoryPatternOptimization(memoryPattern: Boolean) {}

        fun setCPUArenaAllocator(useArena: Boolean) {}

        fun setDeterministicCompute(isDeterministic: Boolean) {}

        fun addConfigEntry(configKey: String, configValue: String) {}

        override fun close() {}
    }

    class Result internal constructor(private val found: List<OnnxValue>) : AutoCloseable {
        fun get(index: Int): OnnxValue = found[index]

        override fun close() {}
    }

    fun run(inputs: Map<String, OnnxTensor>, requestedOutputs: Set<String>): Result {
        inputs.values.forEachIndexed { place, tensor -> Tape.requireInput(place, tensor.bytes) }
        val found = requestedOutputs.toList().indices.map { OnnxTensor(Tape.bytes("out", it)) }
        Tape.next()
        return Result(found)
    }

    override fun close() {}
}
