package androidx.test.platform.app

import android.content.Context
import java.io.File

class Instrumentation {
    val targetContext = Context(File(System.getProperty("main")))
    val context = Context(File(System.getProperty("androidTest")))
}

object InstrumentationRegistry {
    @JvmStatic
    fun getInstrumentation(): Instrumentation = Instrumentation()
}
