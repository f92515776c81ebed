import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "@@package@@"
    compileSdk = 36

    defaultConfig {
        // What the runtime's own package for Android asks for.
        minSdk = 24
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        consumerProguardFiles("consumer-rules.pro")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    androidResources {
        // Compressed, the model could not be mapped into memory. Repeat this in the app's own
        // build.gradle.kts: there the final package is made.
        noCompress += listOf(@@no_compress@@)
    }
}

kotlin {
    compilerOptions {
        jvmTarget.set(JvmTarget.JVM_17)
    }
}

dependencies {
    // @@comment@@
    // What was measured is onmetal's own runner on the device, not this build of the runtime.
    implementation("@@coordinate@@")

    androidTestImplementation("androidx.test:runner:1.6.2")
    androidTestImplementation("androidx.test.ext:junit:1.2.1")
}
