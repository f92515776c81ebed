@file:Suppress("UNUSED_PARAMETER", "unused")

package com.google.ai.edge.litert

import android.content.res.AssetManager
import tape.Tape
import tape.little

enum class Accelerator { NONE, CPU, GPU, NPU }

class Environment

class TensorBuffer internal constructor(internal var bytes: ByteArray) : AutoCloseable {
    private var closed = false

    fun writeFloat(data: FloatArray) {
        bytes = little(4 * data.size).also { it.asFloatBuffer().put(data) }.array()
    }

    fun writeInt8(data: ByteArray) {
        bytes = data.copyOf()
    }

    fun writeInt(data: IntArray) {
        bytes = little(4 * data.size).also { it.asIntBuffer().put(data) }.array()
    }

    fun writeLong(data: LongArray) {
        bytes = little(8 * data.size).also { it.asLongBuffer().put(data) }.array()
    }

    fun writeBoolean(data: BooleanArray) {
        bytes = ByteArray(data.size) { if (data[it]) 1 else 0 }
    }

    fun readFloat(): FloatArray = FloatArray(bytes.size / 4).also { little(bytes).asFloatBuffer().get(it) }

    fun readInt8(): ByteArray = bytes.copyOf()

    fun readInt(): IntArray = IntArray(bytes.size / 4).also { little(bytes).asIntBuffer().get(it) }

    fun readLong(): LongArray = LongArray(bytes.size / 8).also { little(bytes).asLongBuffer().get(it) }

    fun readBoolean(): BooleanArray = BooleanArray(bytes.size) { bytes[it] != 0.toByte() }

    override fun close() {
        check(!closed)
        closed = true
    }
}

class CompiledModel private constructor() : AutoCloseable {
    data class CpuOptions(
        val numThreads: Int? = null,
        val xnnPackFlags: Int? = null,
        val xnnPackWeightCachePath: String? = null
    )

    class Options(vararg val accelerators: Accelerator) {
        var cpuOptions: CpuOptions? = null
    }

    fun createInputBuffers(signatureIndex: Int = 0): List<TensorBuffer> =
        List(Tape.count("in")) { TensorBuffer(ByteArray(0)) }

    fun createOutputBuffers(signatureIndex: Int = 0): List<TensorBuffer> =
        List(Tape.count("out")) { TensorBuffer(ByteArray(0)) }

    fun run(inputs: List<TensorBuffer>, outputs: List<TensorBuffer>, signatureIndex: Int = 0) {
        inputs.forEachIndexed { place, buffer -> Tape.requireInput(place, buffer.bytes) }
        outputs.forEachIndexed { place, buffer -> buffer.bytes = Tape.bytes("out", place) }
        Tape.next()
    }

    override fun close() {}

    companion object {
        @JvmStatic
        fun create(
            assetManager: AssetManager,
            assetName: String,
            options: Options = Options(Accelerator.CPU),
            optionalEnv: Environment? = null
        ): CompiledModel {
            assetManager.open(assetName).close()
            check(options.accelerators.single() == Accelerator.CPU)
            check(options.cpuOptions!!.numThreads!! > 0)
            return CompiledModel()
        }
    }
}
