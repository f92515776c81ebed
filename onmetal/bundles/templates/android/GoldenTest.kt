package @@package@@

import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

/** Do the golden vectors come out of this device, through this build of the runtime? */
@RunWith(AndroidJUnit4::class)
class GoldenTest {
    @Test
    fun outputsAgreeWithTheGoldenVectors() {
        val context = InstrumentationRegistry.getInstrumentation().targetContext
        val wrong = ArrayList<String>()
        Model(context).use { model ->
            for (number in 0 until VECTORS) {
                outputs(model, number).forEachIndexed { output, found ->
                    val spec = ModelConstants.OUTPUTS[output]
                    val expected = read("output-$output-$number.bin", spec)
                    val (gap, allowed) = difference(expected, found)
                    if (gap > allowed) {
                        wrong.add("vector $number, ${spec.name}: off by $gap, $allowed is allowed")
                    }
                }
            }
        }
        assertTrue(wrong.joinToString("\n"), wrong.isEmpty())
    }

    private fun outputs(model: Model, number: Int): List<Any> {
        val found = model.run(
            @@readers@@
        )
        return listOf(@@found@@)
    }

    /** A vector from this test's assets: little-endian, in the order of the model's shape. */
    private fun read(file: String, spec: TensorSpec): Any {
        val assets = InstrumentationRegistry.getInstrumentation().context.assets
        val content = assets.open("golden/$file").use { it.readBytes() }
        val bytes = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
        return when (spec.dtype) {
            "float32" -> FloatArray(spec.size).also { bytes.asFloatBuffer().get(it) }
            "float64" -> DoubleArray(spec.size).also { bytes.asDoubleBuffer().get(it) }
            "int16" -> ShortArray(spec.size).also { bytes.asShortBuffer().get(it) }
            "int32" -> IntArray(spec.size).also { bytes.asIntBuffer().get(it) }
            "int64" -> LongArray(spec.size).also { bytes.asLongBuffer().get(it) }
            "bool" -> BooleanArray(spec.size) { content[it] != 0.toByte() }
            else -> content
        }
    }

    /** The largest difference and what is allowed: a part of the largest finite magnitude. */
    private fun difference(expected: Any, found: Any): Pair<Double, Double> {
        if (expected !is FloatArray && expected !is DoubleArray) {
            return Pair(if (same(expected, found)) 0.0 else Double.POSITIVE_INFINITY, 0.0)
        }
        var worst = 0.0
        var peak = 0.0
        for (place in 0 until java.lang.reflect.Array.getLength(expected)) {
            val left = real(expected, place)
            val right = real(found, place)
            if (Math.abs(left) <= Double.MAX_VALUE) peak = Math.max(peak, Math.abs(left))
            if (left == right || (left.isNaN() && right.isNaN())) continue
            val gap = Math.abs(left - right)
            worst = if (gap.isNaN()) Double.POSITIVE_INFINITY else Math.max(worst, gap)
        }
        return Pair(worst, TOLERANCE * peak)
    }

    private fun real(values: Any, place: Int): Double = when (values) {
        is FloatArray -> values[place].toDouble()
        is DoubleArray -> values[place]
        else -> throw IllegalStateException("no array of reals")
    }

    private fun same(expected: Any, found: Any): Boolean = when (expected) {
        is ByteArray -> expected.contentEquals(found as ByteArray)
        is ShortArray -> expected.contentEquals(found as ShortArray)
        is IntArray -> expected.contentEquals(found as IntArray)
        is LongArray -> expected.contentEquals(found as LongArray)
        is BooleanArray -> expected.contentEquals(found as BooleanArray)
        else -> false
    }

    private companion object {
        const val VECTORS = @@vectors@@

        /** Of the largest magnitude that an output has; whole numbers must be equal. */
        const val TOLERANCE = @@tolerance@@
    }
}
