package @@package@@

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer

/**
 * The model, opened once and run many times on the CPU, one inference at a time.
 *
 * Arrays go in and come out in the layout and type that the original model has. Open it away from
 * the main thread: that reads the whole file, to check its digest, and prepares it.
 */
class Model(context: Context) : AutoCloseable {
    /** What one inference gives. */
    class Outputs(
        @@fields@@
    )

    private val compiled: CompiledModel = opened(context)
    private val inputs: List<TensorBuffer> = compiled.createInputBuffers()
    private val outputs: List<TensorBuffer> = compiled.createOutputBuffers()
    private var closed = false

    /**
     * One inference.
     *
@@parameter_docs@@
     * @throws IllegalArgumentException where an array has another length than its shape
     * @throws IllegalStateException after [close]
     */
    fun run(
        @@parameters@@
    ): Outputs = named(this.infer(arrayOf<Any>(@@arguments@@)))

    private fun named(found: List<Any>): Outputs {
        return Outputs(
            @@results@@
        )
    }

    @Synchronized
    private fun infer(given: Array<Any>): List<Any> {
        check(!closed) { "the model is closed" }
        ModelConstants.INPUTS.forEachIndexed { number, spec ->
            write(inputs[spec.place], spec.toArtifact(given[number]))
        }
        compiled.run(inputs, outputs)
        return ModelConstants.OUTPUTS.map { it.fromArtifact(read(outputs[it.place], it)) }
    }

    private fun write(buffer: TensorBuffer, value: Any) = when (value) {
        is FloatArray -> buffer.writeFloat(value)
        is ByteArray -> buffer.writeInt8(value)
        is IntArray -> buffer.writeInt(value)
        is LongArray -> buffer.writeLong(value)
        is BooleanArray -> buffer.writeBoolean(value)
        else -> throw IllegalStateException("no array that LiteRT takes")
    }

    private fun read(buffer: TensorBuffer, spec: TensorSpec): Any = when (spec.stored) {
        "float32" -> buffer.readFloat()
        "int8" -> buffer.readInt8()
        "int32" -> buffer.readInt()
        "int64" -> buffer.readLong()
        "bool" -> buffer.readBoolean()
        else -> throw IllegalStateException("${spec.name} is ${spec.stored}")
    }

    @Synchronized
    override fun close() {
        if (closed) return
        closed = true
        inputs.forEach { it.close() }
        outputs.forEach { it.close() }
        compiled.close()
    }

    private companion object {
        fun opened(context: Context): CompiledModel {
            val asset = ModelConstants.ARTIFACT
            requireDigest(asset, context.assets.open(asset).use { sha256(it) })
            val options = CompiledModel.Options(Accelerator.CPU)
            options.cpuOptions = CompiledModel.CpuOptions(numThreads = ModelConstants.THREADS)
            return CompiledModel.create(context.assets, asset, options)
        }
    }
}
