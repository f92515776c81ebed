package @@package@@

import java.io.InputStream
import java.io.OutputStream
import java.security.MessageDigest

/**
 * One input or output: what the caller hands over, and what the artifact has instead of it.
 *
 * Arrays are flat, in the order of [shape], which is the original model's: images have their
 * channels first. Where the artifact has them last ([channelsLast]), or whole numbers ([scale] is
 * not 0: real = scale * (integer - zeroPoint)), that is done here.
 */
class TensorSpec(
    val name: String,
    val shape: IntArray,
    /** Of the caller's array: numpy's name. */
    val dtype: String,
    /** Of the artifact's tensor. */
    val stored: String,
    /** Its number among the artifact's inputs or outputs. */
    val place: Int,
    val channelsLast: Boolean,
    val scale: Float,
    val zeroPoint: Int
) {
    val size: Int = shape.fold(1) { product, axis -> product * axis }

    /** For each place in the artifact's order the place in the caller's; null if they are one. */
    private val toStored: IntArray? by lazy { if (channelsLast) reordered(false) else null }
    private val toGiven: IntArray? by lazy { if (channelsLast) reordered(true) else null }

    private fun reordered(back: Boolean): IntArray {
        val (_, channels, height, width) = shape
        val plane = height * width
        val order = IntArray(size)
        for (first in order.indices) {
            val image = first / (channels * plane)
            val channel = first / plane % channels
            val last = (image * plane + first % plane) * channels + channel
            if (back) order[first] = last else order[last] = first
        }
        return order
    }

    /** The caller's array as the artifact has it. */
    internal fun toArtifact(value: Any): Any {
        requireLength(value)
        val moved = moved(value, toStored)
        return if (scale == 0f) moved else quantized(moved as FloatArray)
    }

    /** The artifact's array as the caller has it. */
    internal fun fromArtifact(value: Any): Any {
        requireLength(value)
        val real = if (scale == 0f) value else dequantized(value)
        return moved(real, toGiven)
    }

    private fun requireLength(value: Any) {
        val length = java.lang.reflect.Array.getLength(value)
        require(length == size) {
            "$name has $length values where its shape ${shape.toList()} has $size"
        }
    }

    private fun quantized(real: FloatArray): Any = when (stored) {
        "int8" -> ByteArray(size) { integer(real[it], -128, 127).toByte() }
        "uint8" -> ByteArray(size) { integer(real[it], 0, 255).toByte() }
        "int16" -> ShortArray(size) { integer(real[it], -32768, 32767).toShort() }
        else -> throw IllegalStateException("$name is quantized to $stored")
    }

    /** Half a step goes to the even neighbour, as in NumPy. */
    private fun integer(real: Float, low: Int, high: Int): Int {
        val steps = Math.rint((real / scale).toDouble()) + zeroPoint
        return steps.coerceIn(low.toDouble(), high.toDouble()).toInt()
    }

    private fun dequantized(value: Any): FloatArray = when (value) {
        is ByteArray ->
            if (stored == "uint8") FloatArray(size) { real(value[it].toInt() and 0xff) }
            else FloatArray(size) { real(value[it].toInt()) }
        is ShortArray -> FloatArray(size) { real(value[it].toInt()) }
        else -> throw IllegalStateException("$name is quantized to $stored")
    }

    private fun real(integer: Int): Float = (integer.toFloat() - zeroPoint.toFloat()) * scale
}

private fun moved(value: Any, order: IntArray?): Any = when {
    order == null -> value
    value is FloatArray -> FloatArray(order.size) { value[order[it]] }
    value is DoubleArray -> DoubleArray(order.size) { value[order[it]] }
    value is ByteArray -> ByteArray(order.size) { value[order[it]] }
    value is ShortArray -> ShortArray(order.size) { value[order[it]] }
    value is IntArray -> IntArray(order.size) { value[order[it]] }
    value is LongArray -> LongArray(order.size) { value[order[it]] }
    value is BooleanArray -> BooleanArray(order.size) { value[order[it]] }
    else -> throw IllegalStateException("no array of numbers")
}

/** The SHA-256 of all that is left in the stream, which is copied to [copy] on the way. */
internal fun sha256(stream: InputStream, copy: OutputStream? = null): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val piece = ByteArray(1 shl 16)
    while (true) {
        val count = stream.read(piece)
        if (count < 0) break
        digest.update(piece, 0, count)
        copy?.write(piece, 0, count)
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}

internal fun requireDigest(asset: String, found: String) {
    check(found == ModelConstants.ASSETS[asset]) {
        "the asset $asset is not the one that this module was written for: its SHA-256 is $found"
    }
}
