package tape

import org.junit.Test

/** Runs the tests of a class, as an instrumentation would. */
fun main(arguments: Array<String>) {
    val kind = Class.forName(arguments[0])
    val tests = kind.methods.filter { it.isAnnotationPresent(Test::class.java) }
    check(tests.isNotEmpty())
    for (test in tests) test.invoke(kind.getDeclaredConstructor().newInstance())
    println("${tests.size} tests passed")
}
