"""The README's quick start: send an order, and read every order there is."""

import pystreamlog

with pystreamlog.open("data") as log:  # a directory, made if it is missing
    orders = log.create_topic("orders", partitions=4, exist_ok=True)

    with log.producer() as producer:
        delivery = producer.send("orders", b'{"amount": 200}', key=b"customer-17")
        print("written at offset", delivery.result().offset)

    with log.consumer("orders", auto_offset_reset="earliest") as consumer:
        for record in consumer.poll(timeout=1.0):  # "for record in consumer" goes on for ever
            print(record.partition, record.offset, record.key, record.value, record.timestamp)

    print(orders.end_offsets())
