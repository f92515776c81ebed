package onmetal.pictures

import android.content.Context
import java.io.File
import org.junit.Test

/** What the wrapper of the model with two images refuses; not part of what is generated. */
class ContractTest {
    private val context = Context(File(System.getProperty("main")))

    private fun refused(part: String, attempt: () -> Unit) {
        try {
            attempt()
        } catch (error: RuntimeException) {
            check(part in error.message.orEmpty()) { "says: ${error.message}" }
            return
        }
        throw AssertionError("not refused: $part")
    }

    @Test
    fun refusals() {
        val good = FloatArray(144)
        val model = Model(context)
        refused("two has 3 values where its shape [1, 3, 8, 6] has 144") { model.run(good, FloatArray(3)) }
        model.close()
        model.close()
        refused("closed") { model.run(good, good) }
        File(System.getProperty("main"), "assets/${ModelConstants.ARTIFACT}").appendBytes(ByteArray(1))
        File(System.getProperty("main"), "files").deleteRecursively()
        refused("is not the one that this module was written for") { Model(context) }
    }
}
