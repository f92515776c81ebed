package @@package@@

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import java.io.File
import java.nio.ByteBuffer
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/**
 * The model, opened once and run many times on the CPU, one inference at a time.
 *
 * Arrays go in and come out flat, in the layout and type that the original model has. Open it away
 * from the main thread: that unpacks the model into the app's own folder, checks its digest and
 * prepares it.
 */
class Model(context: Context) : AutoCloseable {
    /** What one inference gives. */
    class Outputs(
        @@fields@@
    )

    private val environment: OrtEnvironment = OrtEnvironment.getEnvironment()
    private val session: OrtSession = opened(context)
    private val wanted: Set<String> =
        ModelConstants.OUTPUTS.map { it.name }.toCollection(LinkedHashSet())
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
        val feed = LinkedHashMap<String, OnnxTensor>()
        try {
            ModelConstants.INPUTS.forEachIndexed { number, spec ->
                feed[spec.name] = tensor(spec, spec.toArtifact(given[number]))
            }
            return session.run(feed, wanted).use { found ->
                ModelConstants.OUTPUTS.mapIndexed { number, spec ->
                    spec.fromArtifact(values(spec, found.get(number) as OnnxTensor))
                }
            }
        } finally {
            feed.values.forEach { it.close() }
        }
    }

    private fun tensor(spec: TensorSpec, value: Any): OnnxTensor {
        val shape = LongArray(spec.shape.size) { spec.shape[it].toLong() }
        return when (value) {
            is FloatArray -> OnnxTensor.createTensor(environment, FloatBuffer.wrap(value), shape)
            is DoubleArray -> OnnxTensor.createTensor(environment, DoubleBuffer.wrap(value), shape)
            is ShortArray -> OnnxTensor.createTensor(environment, ShortBuffer.wrap(value), shape)
            is IntArray -> OnnxTensor.createTensor(environment, IntBuffer.wrap(value), shape)
            is LongArray -> OnnxTensor.createTensor(environment, LongBuffer.wrap(value), shape)
            is ByteArray -> {
                val unsigned = spec.stored == "uint8"
                bytes(value, shape, if (unsigned) OnnxJavaType.UINT8 else OnnxJavaType.INT8)
            }
            is BooleanArray -> {
                val flags = ByteArray(value.size) { if (value[it]) 1 else 0 }
                bytes(flags, shape, OnnxJavaType.BOOL)
            }
            else -> throw IllegalStateException("no array that ONNX Runtime takes")
        }
    }

    private fun bytes(value: ByteArray, shape: LongArray, type: OnnxJavaType): OnnxTensor {
        return OnnxTensor.createTensor(environment, ByteBuffer.wrap(value), shape, type)
    }

    private fun values(spec: TensorSpec, tensor: OnnxTensor): Any = when (spec.stored) {
        "float32" -> FloatArray(spec.size).also { tensor.floatBuffer.get(it) }
        "float64" -> DoubleArray(spec.size).also { tensor.doubleBuffer.get(it) }
        "int16" -> ShortArray(spec.size).also { tensor.shortBuffer.get(it) }
        "int32" -> IntArray(spec.size).also { tensor.intBuffer.get(it) }
        "int64" -> LongArray(spec.size).also { tensor.longBuffer.get(it) }
        "int8", "uint8" -> ByteArray(spec.size).also { tensor.byteBuffer.get(it) }
        "bool" -> {
            val flags = ByteArray(spec.size).also { tensor.byteBuffer.get(it) }
            BooleanArray(spec.size) { flags[it] != 0.toByte() }
        }
        else -> throw IllegalStateException("${spec.name} is ${spec.stored}")
    }

    @Synchronized
    override fun close() {
        if (closed) return
        closed = true
        session.close()
    }

    private fun opened(context: Context): OrtSession {
        environment.setTelemetry(false)
        val model = unpacked(context)
        val options = OrtSession.SessionOptions()
        @@options@@
        return options.use { environment.createSession(model.path, it) }
    }

    private companion object {
        /** The artifact as files: ONNX Runtime maps them, and looks for weights beside the model. */
        fun unpacked(context: Context): File {
            val folder = File(context.noBackupFilesDir, "onmetal/${ModelConstants.SHA256}")
            check(folder.isDirectory || folder.mkdirs()) { "cannot make the folder $folder" }
            for ((asset, digest) in ModelConstants.ASSETS) {
                val file = File(folder, asset)
                if (file.isFile && file.inputStream().use { sha256(it) } == digest) continue
                val partial = File(folder, "$asset.partial")
                val found = context.assets.open(asset).use { source ->
                    partial.outputStream().use { sha256(source, it) }
                }
                requireDigest(asset, found)
                check(partial.renameTo(file)) { "cannot write $file" }
            }
            return File(folder, ModelConstants.ARTIFACT)
        }
    }
}
